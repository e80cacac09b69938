"""Rankings by people: the store, the assignment of tasks, and exports."""
