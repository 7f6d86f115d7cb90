"""Small tools without a thought of their own: files, paths, processes, arguments."""
