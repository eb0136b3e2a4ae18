"""What runs in the task of whoever calls: waiting for room, faults, pins, reclaim, swapoff."""
