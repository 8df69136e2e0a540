use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const TOKEN: &str = "ya29.secret-token";
/// No test waits longer for a thread.
const HANG: Duration = Duration::from_secs(30);

/// A server that takes one request and hands the connection to `answer`; gives the request's lines.
struct Server {
    url: String,
    requests: mpsc::Receiver<Vec<String>>,
}

impl Server {
    fn new(answer: impl FnOnce(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/about?fields=storageQuota", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(HANG)).unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            sender.send(lines.take_while(|line| !line.is_empty()).collect()).unwrap();
            answer(stream);
        });
        Self { url, requests }
    }

    fn with(status: &'static str, headers: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::new(move |mut stream| {
            let len = body.len();
            let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {len}\r\n\r\n");
            // A client that has heard enough closes the connection.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            let _ = stream.shutdown(Shutdown::Write);
        })
    }

    fn ask(&self) -> Result<DriveQuota> {
        let answer = probe().endpoint(&self.url).unwrap().quota();
        if let Err(error) = &answer {
            let text = format!("{error} {error:?}");
            let address = self.url.split('?').next().unwrap();
            assert!(text.contains(address) && !text.contains(TOKEN), "{text}");
        }
        answer
    }
}

fn probe() -> DriveProbe {
    DriveProbe::new(TOKEN).unwrap().timeout(HANG)
}

fn answer(body: &str) -> Result<DriveQuota> {
    Server::with("200 OK", "Content-Type: application/json\r\n", body).ask()
}

#[test]
fn the_quota_is_asked_for_with_the_token() {
    let body = r#"{"storageQuota": {"limit": "16106127360", "usage": "3446711296",
        "usageInDrive": "1", "usageInDriveTrash": "0"}}"#;
    let server = Server::with("200 OK", "", body);
    let quota = server.ask().unwrap();
    assert_eq!(quota.available_bytes(), Some(16_106_127_360 - 3_446_711_296));
    assert_eq!((quota.limit_gb(), quota.usage_gb(), quota.available_gb()), (15.0, 3.21, 11.79));
    assert_eq!(quota.to_string(), "3.21 GB of 15.00 GB used, 11.79 GB free");
    let request = server.requests.recv_timeout(HANG).unwrap();
    assert_eq!(request[0], "GET /about?fields=storageQuota HTTP/1.1");
    let authorization = format!("authorization: Bearer {TOKEN}");
    assert!(request.iter().any(|line| line.eq_ignore_ascii_case(&authorization)), "{request:?}");
}

#[test]
fn an_account_without_limit_has_infinite_space() {
    for body in [
        r#"{"storageQuota": {"usage": "1073741824"}}"#,
        r#"{"storageQuota": {"limit": "0", "usage": "1073741824"}}"#,
    ] {
        let quota = answer(body).unwrap();
        assert_eq!((quota.available_bytes(), quota.available_gb()), (None, f64::INFINITY));
        assert_eq!(quota.to_string(), "1.00 GB used, no limit");
    }
    let over = DriveQuota { limit_bytes: Some(5), usage_bytes: 7 };
    assert_eq!(over.available_bytes(), Some(0));
}

#[test]
fn a_refused_token_is_told_from_a_failing_server() {
    for (status, kind) in [
        ("401 Unauthorized", ErrorKind::InvalidInput),
        ("403 Forbidden", ErrorKind::InvalidInput),
        ("404 Not Found", ErrorKind::Storage),
        ("500 Internal Server Error", ErrorKind::Storage),
        ("204 No Content", ErrorKind::Storage),
    ] {
        let error = Server::with(status, "", "{}").ask().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().ends_with(&status[..3]), "{error}");
    }
}

#[test]
fn an_answer_that_is_no_quota_is_an_error() {
    for body in [
        "",
        "<html>",
        "{}",
        "[]",
        r#"{"storageQuota": {}}"#,
        r#"{"storageQuota": {"usage": "-1"}}"#,
        r#"{"storageQuota": {"usage": "1", "limit": "many"}}"#,
        r#"{"storageQuota": {"usage": "99999999999999999999999"}}"#,
    ] {
        assert_eq!(answer(body).unwrap_err().kind(), ErrorKind::Storage, "{body}");
    }
    let cut = Server::new(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
    });
    assert_eq!(cut.ask().unwrap_err().kind(), ErrorKind::Storage);
    let silent = Server::new(drop);
    assert_eq!(silent.ask().unwrap_err().kind(), ErrorKind::Storage);
}

#[test]
fn a_long_answer_is_not_read_to_its_end() {
    let mut body = br#"{"storageQuota": {"usage": "1"}}"#.to_vec();
    body.resize(1 << 20, b' ');
    let error = Server::with("200 OK", "", body).ask().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    let endless = Server::new(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n");
        while stream.write_all(&[b' '; 4096]).is_ok() {}
    });
    assert_eq!(endless.ask().unwrap_err().kind(), ErrorKind::Storage);
}

#[test]
fn a_server_that_says_nothing_meets_the_deadline() {
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"] {
        let (done, wait) = mpsc::channel::<()>();
        let server = Server::new(move |mut stream| {
            let _ = stream.write_all(head.as_bytes());
            let _ = wait.recv_timeout(HANG);
        });
        let probe = probe().endpoint(&server.url).unwrap().timeout(Duration::from_millis(50));
        let error = probe.quota().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
        assert_eq!(probe.quota_or_none(), None, "nobody listens any more");
        drop(done);
    }
}

#[test]
fn the_token_does_not_follow_a_redirect() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let elsewhere = listener.local_addr().unwrap();
    let server = Server::new(move |mut stream| {
        let head = format!("HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
    });
    let error = server.ask().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.message().ends_with("302"), "{error}");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_token_is_checked_and_never_shown() {
    for bad in ["", "a b", "a\nb", "a\r\nHost: x", "é", &"x".repeat(20_000)] {
        let error = DriveProbe::new(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
    let shown = format!("{:?}", probe());
    assert!(!shown.contains(TOKEN) && shown.contains("googleapis.com"), "{shown}");
}

#[test]
fn the_token_goes_by_https_or_stays_on_this_host() {
    for bad in
        ["http://example.org/about", "ftp://localhost/", "localhost", "", "/about", "https://"]
    {
        let error = probe().endpoint(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
    for good in ["https://example.org/about", "http://localhost:1/", "http://[::1]:1/"] {
        probe().endpoint(good).unwrap();
    }
    let error = probe().endpoint("http://127.0.0.1:1/").unwrap().quota().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
}
