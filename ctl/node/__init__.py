"""The host as a member of the overlay: set up, taken over from flanneld, taken down."""
