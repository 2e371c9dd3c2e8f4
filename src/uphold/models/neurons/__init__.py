"""Feed-forward neurons: finding those whose change repairs a wrong next token, and editing them."""
