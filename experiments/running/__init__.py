"""Plans, launches and watches the runs of a sweep, and checks that they may be mixed."""
