"""What people say of texts: the store, whose turn it is with what, and the files that are made of it. No torch, no web."""
