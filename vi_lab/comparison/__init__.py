"""Finished runs against each other: groups over seeds, paired differences, tables, curves and the page."""
