"""Where everything lies, and files that are written whole or not at all."""
