"""Pictures and charts, as matplotlib figures."""
