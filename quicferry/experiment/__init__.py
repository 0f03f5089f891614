"""An experiment: what it asks of the machine, one run from the deployment to the result, and many."""
