"""Publishing on the Hub: model cards, uploads, and their verification."""
