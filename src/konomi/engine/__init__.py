"""Models run here: sequences laid end to end, sampling, log-probabilities, and what depends on the device."""
