use super::{Budget, LEN_MIN, Ring};

fn bytes(ring: &Ring) -> Vec<u8> {
    let (first, second) = ring.slices(0, ring.len());
    [first, second].concat()
}

#[test]
fn bytes_come_out_as_they_went_in() {
    let mut budget = Budget::new(1 << 20);
    let mut ring = Ring::new(4 * LEN_MIN);
    let mut model: Vec<u8> = Vec::new();
    let mut random = 1u32;
    let mut next = 0u8;
    for _ in 0..2000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let len = (random >> 8) as usize % 9000;
        if random >> 31 == 0 {
            let data: Vec<u8> = (0..len)
                .map(|_| {
                    next = next.wrapping_add(1);
                    next
                })
                .collect();
            let taken = ring.push(&data, &mut budget);
            assert_eq!(taken, len.min(4 * LEN_MIN - model.len()));
            model.extend(&data[..taken]);
            next = next.wrapping_sub((len - taken) as u8);
        } else {
            ring.consume(len);
            model.drain(..len.min(model.len()));
        }
        assert_eq!(ring.len(), model.len());
        let (first, second) = ring.slices(100, 5000);
        let wanted: Vec<u8> = model.iter().skip(100).take(5000).copied().collect();
        assert_eq!([first, second].concat(), wanted);
    }
    assert_eq!(bytes(&ring), model);
}

#[test]
fn no_more_than_the_budget() {
    let mut budget = Budget::new(LEN_MIN * 3 / 2);
    let mut ring = Ring::new(16 * LEN_MIN);
    assert_eq!(ring.push(&vec![7; 4 * LEN_MIN], &mut budget), LEN_MIN);
    let mut other = Ring::new(16 * LEN_MIN);
    assert_eq!(other.push(b"nothing", &mut budget), 0);
    ring.clear(&mut budget);
    assert_eq!(other.push(b"something", &mut budget), 9);
}
