"""How the runs of a sweep are planned, told apart, launched and watched."""
