"""The training engine: state, step, and the state machine around them."""
