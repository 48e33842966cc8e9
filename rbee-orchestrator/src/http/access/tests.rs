use super::*;

fn refused(access: &Access, headers: &[(&str, &str)]) -> bool {
    let mut request = http::Request::get("/v2/tasks");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let head = request.body(()).unwrap().into_parts().0;
    access.look(&head).refuse_foreign().is_err()
}

#[test]
fn only_this_machine_by_its_own_names_gets_in_without_a_token() {
    let access = Access::loopback().hosts(vec!["queen.lan".into()]);
    for host in [
        "localhost",
        "LOCALHOST:80",
        "127.0.0.1:8080",
        "127.1.2.3",
        "[::1]:8080",
        "queen.lan:1",
        "queen.lan.",
        "localhost.:80",
        "localhost:",
        "[::ffff:127.0.0.1]:80",
        "[0:0:0:0:0:0:0:1]",
    ] {
        assert!(!refused(&access, &[("host", host)]), "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example:80",
        "10.0.0.1",
        "[fe80::1]",
        "",
        ":80",
        ".",
        "localhost..",
        "user@localhost",
        "localhost:80@evil.example",
        "localhost:evil.example",
        "localhost:65536",
        "localhost:+1",
        "localhost ",
        "localhost,evil.example",
        "localhost/x",
        "[::1]evil.example",
        "[::1",
        "::1",
        "[localhost]",
        "[::1%25lo]",
        "0.0.0.0",
        "[::]",
        "%6cocalhost",
    ] {
        assert!(refused(&access, &[("host", host)]), "{host}");
    }
    let page = |origin| [("host", "localhost"), ("origin", origin)];
    for origin in [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://queen.lan",
    ] {
        assert!(!refused(&access, &page(origin)), "{origin}");
    }
    for origin in [
        "http://evil.example",
        "null",
        "file://",
        "https://localhost.evil.example",
        "http://localhost@evil.example",
        "http://localhost/",
        "",
    ] {
        assert!(refused(&access, &page(origin)), "{origin}");
    }
    assert!(!refused(&access, &[]));
}

#[test]
fn every_authority_that_is_given_must_be_ours() {
    let access = Access::loopback();
    let two = [("host", "localhost"), ("host", "evil.example")];
    assert!(refused(&access, &two));
    let origins = [
        ("origin", "http://localhost"),
        ("origin", "http://evil.example"),
    ];
    assert!(refused(&access, &origins));
    let asks = |target: &str, host: &str| {
        let request = http::Request::get(target).header("host", host);
        let head = request.body(()).unwrap().into_parts().0;
        access.look(&head).refuse_foreign().is_err()
    };
    assert!(!asks("http://localhost:8080/v1/models", "localhost:8080"));
    assert!(asks("http://evil.example/v1/models", "localhost:8080"));
    assert!(asks("http://localhost:8080/v1/models", "evil.example"));
}

#[test]
fn a_page_that_does_not_say_whose_it_is_is_refused_by_its_distance() {
    let access = Access::loopback().hosts(vec!["queen.corp.example".into()]);
    let with = |host, site| [("host", host), ("sec-fetch-site", site)];
    for (host, site, is_refused) in [
        ("localhost", "cross-site", true),
        ("localhost", "same-site", false),
        ("localhost", "same-origin", false),
        ("localhost", "none", false),
        ("queen.corp.example", "same-site", true),
        ("queen.corp.example", "cross-site", true),
        ("queen.corp.example", "same-origin", false),
    ] {
        assert_eq!(
            refused(&access, &with(host, site)),
            is_refused,
            "{host} {site}"
        );
    }
    let page = |origin| {
        let host = ("host", "127.0.0.1:8080");
        [host, ("origin", origin), ("sec-fetch-site", "cross-site")]
    };
    assert!(!refused(&access, &page("http://localhost:3000")));
    assert!(refused(&access, &page("http://evil.example")));
}

#[test]
fn a_page_may_read_what_its_origin_is_let_in_for() {
    let access = [Access::loopback(), Access::token("a-token")];
    let allowed = ["https://chat.example", "app://"].map(|o| AllowedOrigin::new(o).unwrap());
    for access in access {
        let access = access
            .hosts(vec!["queen.lan".into()])
            .origins(allowed.to_vec());
        let page = |origins: &[&str]| {
            let mut request = http::Request::get("/v1/models").header("host", "localhost");
            for origin in origins {
                request = request.header("origin", *origin);
            }
            let site = request.header("sec-fetch-site", "cross-site");
            let head = site.body(()).unwrap().into_parts().0;
            let caller = access.look(&head);
            assert_eq!(
                caller.page().is_none(),
                caller.refuse_foreign().is_err() || origins.is_empty()
            );
            caller.page().map(|page| page.to_str().unwrap().to_owned())
        };
        for origin in [
            "http://localhost:3000",
            "http://queen.lan",
            "https://chat.example",
            "app://obsidian.md",
        ] {
            assert_eq!(page(&[origin]).as_deref(), Some(origin));
        }
        for origin in [
            "http://chat.example",
            "null",
            "file://",
            "tauri://localhost",
        ] {
            assert_eq!(page(&[origin]), None, "{origin}");
            assert_eq!(page(&["https://chat.example", origin]), None, "{origin}");
        }
        assert_eq!(page(&[]), None);
        access.set_origins(Vec::new());
        assert_eq!(page(&["https://chat.example"]), None);
    }
}
