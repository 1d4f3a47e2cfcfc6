"""The method written out slowly and plainly, to hold the fast paths against."""
