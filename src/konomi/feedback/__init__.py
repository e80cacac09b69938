"""What people say of texts: the store, whose turn it is with what, the files and the statistics that are made of it.

No torch, no web. Nothing here leaves a person out by how well they agree: agreement is shown, and what to do about it is for
people to decide.
"""
