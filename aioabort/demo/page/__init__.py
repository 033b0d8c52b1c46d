"""The page of the demo: start runs, watch them and abort them."""
