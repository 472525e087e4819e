"""Synthetic pairs with known displacement, generated on the device from tissue maps and random keys."""
