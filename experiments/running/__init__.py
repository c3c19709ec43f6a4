"""Plans, checks, launches and watches the runs of a sweep."""
