//! A queen who is killed at every step that durability hangs on keeps her promises. The long run
//! is `make chaos`.

use rbee_tests::chaos::{self, Args};

#[test]
fn what_was_acknowledged_survives_a_kill_at_every_step() {
    let args = Args {
        kills: 17,
        seed: None,
        minutes: 2.0,
        clients: 2,
    };
    let report = chaos::run(&args).expect("every promise was kept");
    println!("{report}");
    let untouched = &report.untouched;
    assert!(
        untouched.is_empty(),
        "never died at {untouched:?}: {report}"
    );
    assert_eq!(report.aways, 1, "{report}");
}
