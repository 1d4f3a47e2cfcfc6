"""What is built on the library: plans, comparisons, inspections, reports. The core never imports it."""
