use super::calendar::{Date, date_from_days, days_from_date};

fn date(year: i64, month: u8, day: u8) -> Date {
    Date { year, month, day }
}

#[test]
fn known_days() {
    for (expected, days) in [
        (date(1970, 1, 1), 0),
        (date(1969, 12, 31), -1),
        (date(2000, 2, 29), 11_016),
        (date(2000, 3, 1), 11_017),
        (date(2026, 11, 23), 20_780),
        (date(2038, 1, 19), 24_855),
        (date(2100, 3, 1), 47_541),
        (date(0, 3, 1), -719_468),
    ] {
        assert_eq!(date_from_days(days), expected);
        assert_eq!(days_from_date(expected), days);
    }
}

/// Every day of the years that a clock can show, counted up by the rules of the calendar.
#[test]
fn every_day_of_ten_thousand_years() {
    let mut days = days_from_date(date(0, 1, 1));
    for year in 0i64..10_000 {
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        for month in 1..=12u8 {
            let len = match month {
                2 => 28 + u8::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            for day in 1..=len {
                assert_eq!(date_from_days(days), date(year, month, day));
                assert_eq!(days_from_date(date(year, month, day)), days);
                days += 1;
            }
        }
    }
}

#[test]
fn a_day_beyond_the_month_runs_on() {
    assert_eq!(date_from_days(days_from_date(date(2023, 2, 31))), date(2023, 3, 3));
}
