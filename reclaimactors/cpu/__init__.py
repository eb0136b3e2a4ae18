"""What time is spent on: the clocks, time slices, how fast work goes, and pressure."""
