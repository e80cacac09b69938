"""People rank texts: the store, who gets which task, and the files that are made of their answers."""
