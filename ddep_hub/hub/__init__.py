"""Publishing on the Hub: cards, uploads, and their verification."""
