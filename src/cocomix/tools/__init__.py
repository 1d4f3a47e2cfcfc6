"""What is built on the library: plans, comparisons, inspections, the demo. The core never imports it."""
