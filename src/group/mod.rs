//! Processes that save and load together: joining, the vote, and the exchange of gradients.
