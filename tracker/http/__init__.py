"""What agents and BitTorrent clients ask a tracker."""
