"""`konomi doctor`: what is wrong with a job before it runs, and with a run that has been."""
