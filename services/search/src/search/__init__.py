"""One search box over both platforms."""
