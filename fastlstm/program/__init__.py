"""Programs as values, and what compiled code and Python share: words, arguments, memory."""
