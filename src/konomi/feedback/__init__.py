"""What is said of candidates, and by whom."""
