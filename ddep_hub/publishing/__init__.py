"""Model cards and publishing to the Hub."""
