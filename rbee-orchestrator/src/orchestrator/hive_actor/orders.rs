//! Which order comes next.

use std::collections::VecDeque;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{Leave, Order};

/// Waits for the order to leave; the others are kept for later.
pub(super) async fn next_leave(
    orders: &mut UnboundedReceiver<Order>,
    later: &mut VecDeque<Order>,
) -> Leave {
    loop {
        match orders.recv().await {
            Some(Order::Leave(leave)) => return leave,
            Some(order) => later.push_back(order),
            // Nobody can send one any more.
            None => std::future::pending().await,
        }
    }
}

/// A check in place of all that were asked for before it: a thousand streams that break off at once
/// ask a thousand times. An order to leave does not wait for it.
pub(super) fn leave_or_check(
    orders: &mut UnboundedReceiver<Order>,
    later: &mut VecDeque<Order>,
) -> Order {
    while let Ok(order) = orders.try_recv() {
        if let Order::Leave(_) = order {
            return order;
        }
        later.push_back(order);
    }
    while let Some(Order::Check) = later.front() {
        later.pop_front();
    }
    Order::Check
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a hive's inbox is such a channel"
)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[test]
    fn a_thousand_streams_that_break_off_cause_one_check() {
        let (send, mut orders) = mpsc::unbounded_channel();
        let mut later = VecDeque::new();
        for _ in 0..1000 {
            send.send(Order::Check).unwrap();
        }
        assert!(matches!(
            leave_or_check(&mut orders, &mut later),
            Order::Check
        ));
        assert!(later.is_empty() && orders.is_empty());
    }

    #[test]
    fn a_check_after_another_order_is_one_of_its_own() {
        let (send, mut orders) = mpsc::unbounded_channel();
        let mut later = VecDeque::new();
        for order in [Order::Check, Order::Start, Order::Check] {
            send.send(order).unwrap();
        }
        leave_or_check(&mut orders, &mut later);
        assert!(matches!(
            later.make_contiguous(),
            [Order::Start, Order::Check]
        ));
    }

    #[test]
    fn an_order_to_leave_is_not_kept_waiting_by_a_check() {
        let (send, mut orders) = mpsc::unbounded_channel();
        let mut later = VecDeque::new();
        let (done, _) = oneshot::channel();
        send.send(Order::Check).unwrap();
        send.send(Order::Leave(Leave { stop: true, done })).unwrap();
        let next = leave_or_check(&mut orders, &mut later);
        assert!(matches!(next, Order::Leave(_)));
    }
}
