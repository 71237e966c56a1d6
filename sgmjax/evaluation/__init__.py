"""What is done with what was learnt: samples, held-out loss, likelihood, pictures."""
