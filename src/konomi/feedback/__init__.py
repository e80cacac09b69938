"""What people, or a stand-in, say of texts: the store, whose turn it is with what, and the files that are made of it."""
