use super::*;

/// Sends and receives; what is too long does not come whole.
fn pass<T: Serialize + DeserializeOwned>(message: &T) -> T {
    let (ours, theirs) = Link::pair().unwrap();
    Link::new(theirs).send(message, &[]).unwrap();
    ours.receive().unwrap().unwrap().0
}

#[test]
fn the_longest_counters_pass() {
    // As many counters as an engine has, with values that are longer than any.
    let names = (0..12).map(|n| (format!("counter number {n:5}"), u64::MAX)).collect::<Vec<_>>();
    let all = vec![names; 254];
    let Message::Answer(Ok(Answer::Stats(back))) = pass(&Message::Answer(Ok(Answer::Stats(all.clone()))))
    else {
        panic!("another message");
    };
    assert_eq!(back, all);
}

#[test]
fn the_longest_specification_passes() {
    let mut spec = MachineSpec::new("n".repeat(64), 254, 64 << 30);
    spec.cmdline = "\u{1}".repeat(16 << 10);
    spec.check().unwrap();
    let Message::Created(back) = pass(&Message::Created(spec.clone())) else { panic!("another message") };
    assert_eq!(back, spec);
}
