use super::Date;

#[test]
fn days_become_dates() {
    let date = |days| Date::of(days).to_string();
    assert_eq!(date(0), "1970-01-01");
    assert_eq!(date(11_016), "2000-02-29");
    assert_eq!(date(11_017), "2000-03-01");
    assert_eq!(date(20_453), "2025-12-31");
    assert_eq!(date(20_454), "2026-01-01");
}
