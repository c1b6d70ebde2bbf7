"""The long experiments behind the chapters."""
