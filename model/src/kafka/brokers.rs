//! Addresses of brokers, as people write them.

use super::Finding;

/// Reads a list of brokers, `HOST:PORT[,HOST:PORT…]`; blanks around an entry do
/// not count.
///
/// Stricter than librdkafka, which leaves out what it cannot read and then waits
/// for the rest.
///
/// # Errors
/// All entries that are none, each under its own text.
pub fn brokers(text: &str) -> Result<String, Vec<Finding>> {
    let (mut read, mut findings) = (Vec::new(), Vec::new());
    for (number, entry) in (1..).zip(text.split(',').map(str::trim)) {
        if entry.is_empty() {
            findings.push(Finding::new(&format!("entry {number}"), "is empty; write HOST:PORT between the commas"));
        } else if let Some(message) = wrong(entry) {
            findings.push(Finding::new(&shown(entry), message));
        } else {
            read.push(entry);
        }
    }
    if findings.is_empty() { Ok(read.join(",")) } else { Err(findings) }
}

/// What is wrong with an entry.
fn wrong(entry: &str) -> Option<String> {
    if let Some((scheme, _)) = entry.split_once("://") {
        return Some(format!(
            "is a URL; write HOST:PORT without {scheme}://, and how brokers are reached with security.protocol"
        ));
    }
    let Some((host, port)) = entry.rsplit_once(':') else {
        return Some("names no port; write HOST:PORT, such as localhost:9092".to_owned());
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_err() => {
            return Some(format!("{inner:?} is no IPv6 address"));
        }
        Some(_) => {}
        None if host.is_empty() => return Some("names no host; write HOST:PORT, such as localhost:9092".to_owned()),
        None if host.contains(':') => {
            return Some("write an IPv6 address in brackets: [::1]:9092".to_owned());
        }
        None => {
            let fits = |character: char| character.is_alphanumeric() || matches!(character, '.' | '-' | '_');
            if let Some(bad) = host.chars().find(|character| !fits(*character)) {
                return Some(format!("a host name has no {bad:?}; write HOST:PORT, such as localhost:9092"));
            }
        }
    }
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|byte| byte.is_ascii_digit()) => None,
        _ => Some(format!("{port:?} is no port; expected a number from 1 to 65535")),
    }
}

/// An entry without what stands before an `@`: in a URL that may be a password.
fn shown(entry: &str) -> String {
    match entry.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => entry.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_hosts_with_ports() {
        for (text, read) in [
            ("localhost:9092", "localhost:9092"),
            (" a:1 , b.example.org:65535,10.0.0.1:9092", "a:1,b.example.org:65535,10.0.0.1:9092"),
            ("[::1]:9092", "[::1]:9092"),
            ("kafka_1:9092", "kafka_1:9092"),
        ] {
            assert_eq!(brokers(text).as_deref(), Ok(read));
        }
    }

    #[test]
    fn every_bad_entry_is_named_with_what_would_be_right() {
        let told = brokers(
            "http://a:9092,b,c:notaport,,d:0,e:70000,f f:1,::1:9092,[::x]:1,:9092,SASL_SSL://me:pw@g:1,h/x:1,good:1,i:+1",
        )
        .unwrap_err();
        let told: Vec<_> = told.iter().map(|finding| format!("{}: {}", finding.name, finding.message)).collect();
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn nothing_is_no_broker() {
        assert_eq!(brokers("").unwrap_err().len(), 1);
    }
}
