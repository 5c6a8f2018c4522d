//! Days since 1970-01-01 to the proleptic Gregorian calendar and back.
//!
//! A year is taken to begin in March, so that the leap day is its last; 400 such years have 146,097 days.

const DAYS_OF_ERA: i64 = 146_097;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_468;

/// A date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
}

/// Days since 1970-01-01 of a date whose month is 1 to 12; days beyond the month's end run into the next month.
pub(super) fn days_from_date(date: Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = if month < 3 { date.year - 1 } else { date.year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = days_before_month(month_from_march) + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * DAYS_OF_ERA + day_of_era - DAYS_TO_EPOCH
}

/// The date of a day that is at most 2^48 days from 1970.
pub(super) fn date_from_days(days: i64) -> Date {
    let days = days + DAYS_TO_EPOCH;
    let (era, day_of_era) = (days.div_euclid(DAYS_OF_ERA), days.rem_euclid(DAYS_OF_ERA));
    // Takes the leap days out that have passed in the era: one in 4 years, but not in 100, but in 400.
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (year_of_era * 365 + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - days_before_month(month_from_march) + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month < 3);
    Date { year, month: month as u8, day: day as u8 }
}

/// Days of a year that begins in March before a month, 0 for March: 31 and 30 alternate in groups of five months.
fn days_before_month(month_from_march: i64) -> i64 {
    (153 * month_from_march + 2) / 5
}
