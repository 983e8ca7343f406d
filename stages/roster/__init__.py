"""The stage `roster`: who is ranked in each window, in the closed, predicted and hybrid setting."""
