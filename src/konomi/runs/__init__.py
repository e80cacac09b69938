"""A run: its directory, what follows it (console, MLflow), and the machine that it is on."""
