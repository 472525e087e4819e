"""Synthetic pairs with known displacement, made on the device from tissue maps and random keys."""
