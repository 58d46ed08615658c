"""What people ask a tracker: the page, its data and its API."""
