"""What is said of candidates and of before/after texts, by whom, and the statistics of it.

Nothing here leaves a person out by how well they agree: agreement is shown, and what to do about it is for people to decide.
"""
