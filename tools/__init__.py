"""Programs run by hand: what makes the data shipped, what attacks the tool; not installed."""
