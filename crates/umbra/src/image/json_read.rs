//! Reading the JSON that names images and objects: that of RFC 8259, and strings may stand between apostrophes too. What is
//! wrong with a text is told in the words that scripts know from `qemu-img`.

use std::iter::Peekable;
use std::vec::IntoIter;

/// Nesting that is read: more would be nothing but an attack on the stack.
const DEPTH_MAX: i32 = 1024;

/// A value. A number is kept as text: all that becomes of it is an option's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(String),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An object. No name is there twice.
    Map(Vec<(String, Value)>),
}

/// Reads one value.
///
/// # Errors
/// What is wrong, in words.
pub fn read(text: &str) -> Result<Value, String> {
    let mut found = None;
    let mut tokens = Vec::new();
    let (mut braces, mut brackets) = (0, 0);
    let mut lexer = Lexer { rest: text };
    while let Some(token) = lexer.next()? {
        match token {
            Token::Mark('{') => braces += 1,
            Token::Mark('}') => braces -= 1,
            Token::Mark('[') => brackets += 1,
            Token::Mark(']') => brackets -= 1,
            _ => {}
        }
        if found.is_some() {
            return Err("Expecting at most one JSON value".to_owned());
        }
        if braces + brackets > DEPTH_MAX {
            return Err("JSON nesting depth limit exceeded".to_owned());
        }
        tokens.push(token);
        // Where more is closed than was opened, the value ends too, and is wrong.
        if braces < 0 || brackets < 0 || braces == 0 && brackets == 0 {
            found = Some(Parser::parse(std::mem::take(&mut tokens))?);
        }
    }
    match tokens.is_empty() {
        true => found.ok_or_else(|| "Expecting a JSON value".to_owned()),
        false => Parser::parse(tokens),
    }
}

fn wrong<T>(what: impl std::fmt::Display) -> Result<T, String> {
    Err(format!("JSON parse error, {what}"))
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    /// One of `{}[]:,`.
    Mark(char),
    Keyword(&'a str),
    Number(&'a str),
    /// With its quotes.
    Text(&'a str),
}

struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, String> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            '{' | '}' | '[' | ']' | ':' | ',' => {
                self.take(1);
                Token::Mark(first)
            }
            'a'..='z' => {
                let end = self.rest.find(|unit: char| !unit.is_ascii_lowercase());
                Token::Keyword(self.take(end.unwrap_or(self.rest.len())))
            }
            '"' | '\'' => Token::Text(self.string(first)?),
            '-' | '0'..='9' => Token::Number(self.number()?),
            other => return self.stray(other.len_utf8()),
        };
        Ok(Some(token))
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        token
    }

    fn stray<T>(&self, len: usize) -> Result<T, String> {
        wrong(format_args!("stray '{}'", &self.rest[..len]))
    }

    fn string(&mut self, quote: char) -> Result<&'a str, String> {
        let mut escaped = false;
        for (at, unit) in self.rest.char_indices().skip(1) {
            match unit {
                _ if u32::from(unit) < 0x20 => return self.stray(at + 1),
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if unit == quote => return Ok(self.take(at + 1)),
                _ => {}
            }
        }
        self.stray(self.rest.len())
    }

    fn number(&mut self) -> Result<&'a str, String> {
        let bytes = self.rest.as_bytes();
        // The character that cannot stand there is told of too.
        let stray = |at: usize| self.stray(at + self.rest[at..].chars().next().map_or(0, char::len_utf8));
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let start = usize::from(bytes[0] == b'-');
        let mut end = digits(start);
        if end == start {
            return stray(end);
        }
        if bytes[start] == b'0' && end > start + 1 {
            return stray(start + 1);
        }
        if bytes.get(end) == Some(&b'.') {
            let fraction = digits(end + 1);
            if fraction == end + 1 {
                return stray(fraction);
            }
            end = fraction;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(sign);
            if exponent == sign {
                return stray(exponent);
            }
            end = exponent;
        }
        Ok(self.take(end))
    }
}

struct Parser<'a> {
    tokens: Peekable<IntoIter<Token<'a>>>,
}

impl<'a> Parser<'a> {
    fn parse(tokens: Vec<Token<'a>>) -> Result<Value, String> {
        Parser { tokens: tokens.into_iter().peekable() }.value()
    }

    fn next(&mut self) -> Result<Token<'a>, String> {
        self.tokens.next().map_or_else(|| wrong("premature EOI"), Ok)
    }

    fn ends(&mut self, mark: char) -> Result<bool, String> {
        match self.tokens.peek() {
            None => wrong("premature EOI"),
            Some(token) => Ok(*token == Token::Mark(mark)),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.next()? {
            Token::Mark('{') => self.members().map(Value::Map),
            Token::Mark('[') => self.elements().map(Value::List),
            Token::Mark(_) => wrong("expecting value"),
            Token::Keyword("true") => Ok(Value::Bool(true)),
            Token::Keyword("false") => Ok(Value::Bool(false)),
            Token::Keyword("null") => Ok(Value::Null),
            Token::Keyword(word) => wrong(format_args!("invalid keyword '{word}'")),
            Token::Number(text) => Ok(Value::Number(text.to_owned())),
            Token::Text(text) => unescape(text).map(Value::Text),
        }
    }

    fn members(&mut self) -> Result<Vec<(String, Value)>, String> {
        let mut members: Vec<(String, Value)> = Vec::new();
        if self.ends('}')? {
            self.next()?;
            return Ok(members);
        }
        loop {
            self.ends('}')?;
            let Value::Text(name) = self.value()? else { return wrong("key is not a string in object") };
            if self.next()? != Token::Mark(':') {
                return wrong("missing : in object pair");
            }
            let value = self.value()?;
            if members.iter().any(|(other, _)| *other == name) {
                return wrong("duplicate key");
            }
            members.push((name, value));
            match self.next()? {
                Token::Mark('}') => return Ok(members),
                Token::Mark(',') => {}
                _ => return wrong("expected separator in dict"),
            }
        }
    }

    fn elements(&mut self) -> Result<Vec<Value>, String> {
        let mut elements = Vec::new();
        if self.ends(']')? {
            self.next()?;
            return Ok(elements);
        }
        loop {
            elements.push(self.value()?);
            match self.next()? {
                Token::Mark(']') => return Ok(elements),
                Token::Mark(',') => {}
                _ => return wrong("expected separator in list"),
            }
        }
    }
}

/// What stands between the quotes.
fn unescape(text: &str) -> Result<String, String> {
    let mut rest = &text[1..text.len() - 1];
    let mut out = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let unit = match rest.chars().next() {
            Some(unit @ ('"' | '\'' | '\\' | '/')) => unit,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let (unit, len) = code_unit(rest)?;
                out.push(unit);
                rest = &rest[len..];
                continue;
            }
            _ => return wrong("invalid escape sequence in string"),
        };
        out.push(unit);
        rest = &rest[1..];
    }
    out.push_str(rest);
    match out.chars().any(is_no_character) {
        true => wrong("invalid UTF-8 sequence in string"),
        false => Ok(out),
    }
}

/// Code points that Unicode keeps free of characters.
fn is_no_character(unit: char) -> bool {
    let code = u32::from(unit);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// The character of `uXXXX`, or of two of them that are a surrogate pair, and how long that is.
fn code_unit(text: &str) -> Result<(char, usize), String> {
    let hex = |at: usize| {
        let digits = text.get(at..at + 4)?;
        let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| all)
    };
    let (first, second) = (hex(1), text.get(5..7).filter(|next| *next == "\\u").and_then(|_| hex(7)));
    let (code, len) = match (first, second) {
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => {
            (Some(0x1_0000 + ((high & 0x3ff) << 10 | low & 0x3ff)), 11)
        }
        _ => (first, 5),
    };
    match code.and_then(char::from_u32).filter(|unit| !is_no_character(*unit)) {
        Some(unit) => Ok((unit, len)),
        None => {
            let shown: String = text.chars().take(5).collect();
            wrong(format_args!("\\{shown} is not a valid Unicode character"))
        }
    }
}

#[cfg(test)]
#[path = "json_read_test.rs"]
mod json_read_test;
