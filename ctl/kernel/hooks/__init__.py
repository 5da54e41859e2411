"""Where programs run: tcx, clsact's filters, XDP."""
