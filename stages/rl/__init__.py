"""Reinforcement learning of a policy whose action is the joint ranking and certificate."""
