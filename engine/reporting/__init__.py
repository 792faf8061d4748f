"""Reports: what a run's figures are, how sure one can be of them, and a page that shows them."""
